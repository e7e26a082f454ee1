"""What a job's state is: models, optimizers, generators and the user's own objects, as named items and back."""
