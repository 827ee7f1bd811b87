//! One file for each command; the docs of its arguments are its help.

mod bench;
mod call;
mod checkpoint;
mod cluster;
mod completions;
mod dead_letter;
mod demo;
mod demo_cluster;
mod get;
mod log;
mod process;
mod restore;
mod start;
mod status;
mod up;

use crate::failure::{EXIT_CODES, Failure};
use clap::{Parser, Subcommand};

/// Stateful services that outlive the machines they run on
#[derive(Debug, Parser)]
#[command(
    name = "stead",
    version,
    after_help = format!("Example:\n  stead start --data ./data\n  stead call kv greeting '{{\"put\": {{\"value\": \"hello\"}}}}'\n\n{EXIT_CODES}"),
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// Print JSON on standard output, also for failures
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    #[command(hide = true)]
    DemoChild,
    #[command(hide = true)]
    DemoNode(Box<demo_cluster::NodeArgs>),
    Start(Box<start::StartArgs>),
    Call(call::CallArgs),
    Get(get::GetArgs),
    Status(status::StatusArgs),
    Checkpoint(checkpoint::CheckpointArgs),
    Process(process::ProcessArgs),
    DeadLetter(dead_letter::DeadLetterArgs),
    Cluster(up::ClusterArgs),
    Node(cluster::NodeArgs),
    Service(cluster::ServiceArgs),
    Failover(cluster::FailoverArgs),
    Bench(bench::BenchArgs),
    Restore(restore::RestoreArgs),
    Log(log::LogArgs),
    Completions(completions::CompletionsArgs),
}

impl Cli {
    /// Whether this is a server, which must not wait for a reader of its output when it ends.
    pub(crate) fn is_server(&self) -> bool {
        matches!(self.command, Command::Start(_) | Command::DemoNode(_))
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        match &self.command {
            Command::Demo(args) if args.is_of_cluster() => demo_cluster::run(args, self.json),
            Command::Demo(args) => demo::run(args, self.json),
            Command::DemoNode(args) => demo_cluster::run_node(args, self.json),
            Command::DemoChild => demo::run_child(),
            Command::Start(args) => start::run(args, self.json),
            Command::Call(args) => call::run(args, self.json),
            Command::Get(args) => get::run(args, self.json),
            Command::Status(args) => status::run(args, self.json),
            Command::Checkpoint(args) => checkpoint::run(args, self.json),
            Command::Process(args) => process::run(args, self.json),
            Command::DeadLetter(args) => dead_letter::run(args, self.json),
            Command::Cluster(args) => up::run(args, self.json),
            Command::Node(args) => cluster::run_node(args, self.json),
            Command::Service(args) => cluster::run_service(args, self.json),
            Command::Failover(args) => cluster::run_failover(args, self.json),
            Command::Bench(args) => bench::run(args, self.json),
            Command::Restore(args) => restore::run(args, self.json),
            Command::Log(args) => log::run(args, self.json),
            Command::Completions(args) => completions::run(args, self.json),
        }
    }
}
