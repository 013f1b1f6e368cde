"""The tree of settings of an experiment: all defaults are here, a YAML file gives the differences.

`Experiment.load` reads a YAML file (which may name a `base` to differ from), applies `key=value`
overrides and resolves every default. The resolved tree is stored in each checkpoint, so decoding,
export and serving take an experiment folder and never an architecture flag.
"""
