"""What to run: the configuration of a study, its cells, resources and plan. Imports no torch.

>>> from attngrid.study.schema import load_study
>>> study = load_study("config/cifar20.yaml")
>>> study.study, len(study.cells), study.cells[0].label
('cifar20', 15, 'ResNet-18, seed 0')
"""
