"""Interfaces of other packages: braindecode, MOABB, Brainmarks. Each file needs the package that it is named after."""
