"""What a dashboard costs, with and without sharing answers."""
