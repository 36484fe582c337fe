//! The `sodiumd` binary: daemon and command line in one.

fn main() -> std::process::ExitCode {
    sodiumd::cli::main()
}
