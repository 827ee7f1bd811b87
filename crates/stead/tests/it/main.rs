//! The library over a real disk: its guarantees to users, one subject a module.

#![allow(clippy::unwrap_used, reason = "a test ends at the first unexpected result")]

mod checkpoints;
mod cluster;
mod cluster_bad;
mod context;
mod cuts;
mod edge;
mod effects;
mod evolution;
mod evolution_messages;
mod example;
mod examples;
mod faults;
mod faults_checks;
mod faults_damage;
mod faults_disk;
mod faults_handler;
mod faults_holds;
mod faults_queries;
mod faults_requests;
mod faults_stop;
mod faults_threads;
mod limits;
mod memory;
mod merges;
mod native;
mod native_raw;
mod patience;
mod services;
mod stable;
mod start;
mod subscriber;
mod task_threads;
