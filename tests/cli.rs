//! The built program, from outside.
