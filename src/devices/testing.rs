//! A fake guest driver.
