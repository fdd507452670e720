"""What a model is given beside the noise: masks over tokens, and the condition."""
