"""Homomorphic encryption: prediction on encrypted inputs."""
