"""Loss surfaces and Hessian spectra of trained checkpoints."""
