"""The recurrences, one a file: parameters, equations, the step, and the adjoint of that step beside it."""
