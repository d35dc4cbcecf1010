"""Modules under the names they had before the wings, which pickles and programs hold.

``optex_rl.__path__`` leads here: ``optex_rl.kfac`` is ``kfac.py`` beside this file, which gives what
`optex_rl.bases.kfac` has. The imports in them are absolute, because the files are found under both names.
"""
