"""What a training will take, and the settings that it chooses by itself."""
