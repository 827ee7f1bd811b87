//! The real binary, from its arguments to its exit.

mod checkpoints;
mod command;
mod faults_server;
mod gateway;
mod help;
mod lives;
mod server;
