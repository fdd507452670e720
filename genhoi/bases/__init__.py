"""What `--base` names: models with their codecs and encoders, ready to be edited with."""
