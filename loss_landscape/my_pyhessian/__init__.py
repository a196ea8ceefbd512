"""Eigenvalues, trace and spectral density of the Hessian of a training loss."""
