"""A study on a Slurm cluster: every stage is a job, and every edge a dependency of jobs."""
