"""The tests: a package only so that its helpers can be imported as `tests.helpers`."""
