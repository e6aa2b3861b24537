"""Settings of nbgrader for this folder: `nbgrader generate_assignment rand-index`, then `nbgrader autograde rand-index`."""

c = get_config()  # noqa: F821 (nbgrader gives it)
c.CourseDirectory.course_id = "peaks-and-gates"
c.ClearSolutions.code_stub = {"python": "# Your code here.\nraise NotImplementedError()"}
c.ExecutePreprocessor.timeout = 120  # seconds of one cell
c.OverwriteCells.add_missing_cells = True  # a check that a learner deleted is tried all the same
