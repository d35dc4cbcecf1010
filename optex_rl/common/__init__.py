"""What all other wings build on: errors, files, checks and linear algebra."""
