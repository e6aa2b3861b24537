// Stands in for the theme's copy of Font Awesome as a script (1.5 MB), whose icons the theme's style sheet has as a font.
