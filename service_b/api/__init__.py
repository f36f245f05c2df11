"""HTTP: routes, bodies, errors, answers. Knows neither messaging nor SQL."""
