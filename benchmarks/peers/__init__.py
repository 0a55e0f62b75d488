"""Training loops as others document theirs, in our own words; each is a side of a comparison."""
