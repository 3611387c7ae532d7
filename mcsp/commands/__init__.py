"""The command line: ``mcsp VERB``. The scripts in launchers/ are the same commands, for DeepSpeed and Ray."""
