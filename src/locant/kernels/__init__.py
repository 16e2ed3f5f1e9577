"""One file per way to execute. Each has four names: `name`, `refuses(problem)`, `cost(problem)`, `run(problem, inputs)`."""
