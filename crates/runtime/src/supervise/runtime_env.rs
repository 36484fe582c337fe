//! What runtimes are told of the limits they run within, in the environment. Most of them look at the whole
//! machine, take too much, and are killed; told, they collect their garbage in time.
//!
//! Sources: V8's `--max-old-space-size` (MiB), by node's NODE_OPTIONS and Deno's DENO_V8_FLAGS; JavaScriptCore's
//! `forceRAMSize` (bytes), by Bun's BUN_JSC_ variables; Go's GOMEMLIMIT and GOMAXPROCS; CPython 3.13's
//! PYTHON_CPU_COUNT; glibc's MALLOC_ARENA_MAX, of which it else makes eight for each cpu.

use sodium_model::Limits;

/// V8's heap is this much of the limit, in percent: buffers, stacks and code lie beside it.
const HEAP_PERCENT: u64 = 75;
/// A collector that counts nearly everything may have nearly everything.
const ALL_PERCENT: u64 = 90;
/// Below this, glibc's arenas are what fills the memory.
const FEW_ARENAS_BELOW_MB: u64 = 2048;

pub(crate) fn of(limits: &Limits) -> Vec<(String, String)> {
    let mut hints: Vec<(&str, String)> = Vec::new();
    let mb = limits.memory_mb;
    if mb > 0 {
        let heap = format!("--max-old-space-size={}", (mb * HEAP_PERCENT / 100).max(1));
        hints.push(("NODE_OPTIONS", heap.clone()));
        hints.push(("DENO_V8_FLAGS", heap));
        hints.push(("BUN_JSC_forceRAMSize", (mb << 20).to_string()));
        hints.push(("GOMEMLIMIT", format!("{}MiB", (mb * ALL_PERCENT / 100).max(1))));
    }
    if mb > 0 && mb < FEW_ARENAS_BELOW_MB {
        hints.push(("MALLOC_ARENA_MAX", "2".to_owned()));
    }
    if limits.cpu_percent > 0 {
        let cpus = limits.cpu_percent.div_ceil(100).to_string();
        hints.push(("GOMAXPROCS", cpus.clone()));
        hints.push(("PYTHON_CPU_COUNT", cpus));
    }
    hints.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_told_what_they_may_have_and_nothing_of_what_has_no_limit() {
        let limits = Limits { memory_mb: 512, cpu_percent: 150, ..Limits::NONE };
        let lines: Vec<String> =
            of(&limits).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            lines,
            [
                "NODE_OPTIONS=--max-old-space-size=384",
                "DENO_V8_FLAGS=--max-old-space-size=384",
                "BUN_JSC_forceRAMSize=536870912",
                "GOMEMLIMIT=460MiB",
                "MALLOC_ARENA_MAX=2",
                "GOMAXPROCS=2",
                "PYTHON_CPU_COUNT=2",
            ]
        );
        assert_eq!(of(&Limits::NONE), []);
    }
}
