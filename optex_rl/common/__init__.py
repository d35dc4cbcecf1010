"""The ground that every wing stands on: errors, files, checks and linear algebra."""
