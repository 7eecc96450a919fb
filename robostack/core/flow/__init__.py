"""Flow and diffusion as one library: Gaussian paths, losses on them, solvers and guidance."""
