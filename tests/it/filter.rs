//! The system-call filter inside of sandboxes: what it refuses, by its answer to each number, and what has to go on under it.

use serde_json::{Value, json};
use sodium_sys::seccomp;

use crate::desk::Desk;

/// Nothing the kernel has is numbered higher.
const NUMBERS: i64 = 600;
/// Answered by the kernel before any filter is asked: uretprobe and uprobe, by ending who calls them.
const BEFORE: [i64; 2] = [335, 336];
/// How a program says that what it needs is not on this machine.
const MISSING: i32 = 77;

/// Real programs, each by a script that ends with the word `fine`.
const WORK: [(&str, &str); 7] = [
    (
        "bash",
        "for i in 1 2 3; do (sleep 0.01; echo $i) & done; wait; mkfifo pipe; (echo through > pipe &); cat pipe; \
         trap 'echo caught' USR1; kill -USR1 $$; echo fine",
    ),
    ("python3", "exec python3 work.py"),
    ("node", "exec node work.js"),
    (
        "cc",
        "printf '#include <stdio.h>\\nint main(void) { return puts(\"fine\") < 0; }\\n' > main.c; cc -O2 -o main main.c; ./main",
    ),
    (
        "git",
        "git init -q repository; cd repository; git config user.email a@example.com; git config user.name a; \
         echo text > file; git add file; git commit -q -m one; git gc -q; git clone -q . ../clone; cat ../clone/file; echo fine",
    ),
    (
        "npm",
        "mkdir -p project/local; cd project; echo 'module.exports = \"fine\"' > local/index.js; \
         echo '{\"name\": \"local\", \"version\": \"1.0.0\"}' > local/package.json; \
         echo '{\"name\": \"project\", \"version\": \"1.0.0\"}' > package.json; \
         npm install --offline --no-audit --no-fund ./local; node -p 'require(\"local\")'",
    ),
    (
        "pip3",
        "python3 -c 'import setuptools, pip' || exit 77; mkdir package; echo 'word = \"fine\"' > package/local_word.py; \
         echo 'from setuptools import setup; setup(name=\"local-word\", version=\"1\", py_modules=[\"local_word\"])' \
         > package/setup.py; python3 -m pip install -q --no-index --no-build-isolation --no-cache-dir --target site ./package; \
         PYTHONPATH=site python3 -c 'import local_word; print(local_word.word)'",
    ),
];

/// Each number that is kept from workloads with the error it gives, and a call that its argument forbids.
fn calls() -> String {
    let refused: Vec<i64> = seccomp::refused().map(|(_, number)| number).collect();
    let denied = (0..=NUMBERS)
        .filter(|number| !BEFORE.contains(number) && seccomp::denies(&number.to_string()))
        .map(|number| {
            let error = if refused.contains(&number) { libc::EPERM } else { libc::ENOSYS };
            format!("{number} {error}\n")
        });
    // getpid under the x32 ABI; clone of a user namespace.
    let more = [
        format!("{} {}\n", 0x4000_0000 | 39, libc::ENOSYS),
        format!("{} {} {}\n", libc::SYS_clone, libc::EPERM, libc::CLONE_NEWUSER),
    ];
    denied.chain(more).collect()
}

fn spec(isolation: &str, command: &[&str]) -> Value {
    json!({"isolation": isolation, "command": command, "restart": {"policy": "never"},
        "limits": {"memory_mb": 768, "max_processes": 96, "max_files": 1024, "disk_mb": 256},
        "files": {"calls": calls(), "filter.py": include_str!("filter.py"),
            "work.py": include_str!("work.py"), "work.js": include_str!("work.js")}})
}

#[tokio::test]
async fn the_filter_answers_each_number_as_its_table_has_it() {
    let desk = Desk::new().await;
    for isolation in ["bubblewrap", "process"] {
        let asks = format!("asks-{isolation}");
        let command = ["sh", "-c", "python3 filter.py; exec sleep 1000"];
        desk.write_spec(&format!("{asks}.yaml"), &asks, &spec(isolation, &command));
        assert_eq!(desk.wait_logs(&asks, "asked").await, "asked\n", "{isolation}");
        // What comes in by the side is under the same one.
        let (code, out, said) = desk.cli(&["exec", &asks, "--", "python3", "filter.py"]);
        assert_eq!((code, &*out), (0, "asked\n"), "{isolation}: {said}");
    }
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "what is not on this machine cannot run, and says so")]
async fn real_programs_work_under_the_filter() {
    let desk = Desk::new().await;
    for isolation in ["bubblewrap", "process"] {
        desk.write_spec(
            &format!("{isolation}.yaml"),
            isolation,
            &spec(isolation, &["sleep", "1000"]),
        );
        desk.wait_phase(isolation, "Running").await;
        for (program, script) in WORK {
            let script =
                format!("command -v {program} > command || exit {MISSING}; set -e; {script}");
            let (code, out, said) = desk.cli(&["exec", isolation, "--", "bash", "-c", &script]);
            if code == MISSING {
                // Debian's npm is four hundred packages; the rest the Makefile installs.
                assert_eq!(program, "npm", "there is no {program} here");
                eprintln!("SKIPPED: there is no npm here");
                continue;
            }
            assert!(
                code == 0 && out.ends_with("fine\n"),
                "{isolation}: {program}: {code} {out}{said}"
            );
        }
    }
}
