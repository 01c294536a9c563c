//! The `podwire` binary: argv to a subcommand, nothing else.

fn main() -> std::process::ExitCode {
    podwire::cmd::main()
}
