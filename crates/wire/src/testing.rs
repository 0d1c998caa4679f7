//! Generators and checkers shared by property tests and fuzz targets.
