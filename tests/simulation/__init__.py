"""The stream's exactness under a seeded scheduler: real handlers, a virtual log and store."""
