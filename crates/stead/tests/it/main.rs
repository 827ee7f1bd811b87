//! The library over a real disk: what users rely on, one subject a module.

mod checkpoints;
mod effects;
mod evolution;
mod faults;
mod faults_damage;
mod faults_disk;
mod faults_handler;
mod faults_requests;
mod services;
mod start;
