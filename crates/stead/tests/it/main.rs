//! The library over a real disk: what users rely on, one subject a module.

mod services;
mod start;
