//! Developer commands: what a person working on Sampan runs that a user never needs.
//!
//! `cargo run -p sampan-xtask -- gen-schema` rewrites the table of built-in definitions in `crates/api`.

mod gen_schema;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Developer commands of Sampan")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Rewrite the table of built-in definitions from the sources of k8s-openapi and k8s-pb.
    GenSchema(gen_schema::Args),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::GenSchema(args) => gen_schema::run(&args),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
