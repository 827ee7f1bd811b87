//! Tests of the flights application.

mod reading;
