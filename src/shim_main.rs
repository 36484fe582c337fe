//! The `sodium-shim` binary. See [`sodiumd::shim`].

fn main() -> std::process::ExitCode {
    sodiumd::shim::run()
}
