"""What tests share: cases, stand-ins, tiny models."""
