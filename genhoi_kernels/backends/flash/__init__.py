"""The backend that calls a FlashAttention twice, and merges what it returns."""
