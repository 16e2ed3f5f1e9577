"""One file per way to execute, each with four names: `name`, `refuses(problem)`, `cost(problem)` and
`run(problem, inputs)`."""
