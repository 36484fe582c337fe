//! What a sandbox that prints as fast as it can costs the others: their starts beside it, and without it.

use std::time::Duration;

use serde_json::json;

use super::report::Bar;
use super::{Desk, median, ms, p99};

const TURNS: usize = 6;
const STARTS: usize = 20;
const SETTLES: Duration = Duration::from_secs(2);

/// In turns, so that whatever else the machine does meets both.
pub async fn bars() -> Vec<Bar> {
    let mut desk = Desk::new(json!({})).await;
    // With the limits that it has if nobody says any.
    let loud = json!({"command": ["yes", "x".repeat(63)], "state": "stopped"});
    desk.put("loud", &loud).await;
    let spec =
        json!({"command": ["echo", "hi"], "state": "stopped", "restart": {"policy": "never"}});
    desk.put("quiet", &spec).await;
    let mut console = desk.console("quiet").await;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for (which, power) in ["stop", "start"].into_iter().enumerate() {
            desk.post_owned(format!("/v1/sandboxes/loud/{power}?wait=20s"), "{}").await;
            tokio::time::sleep(SETTLES).await;
            for start in 0..STARTS {
                let took = desk.first_byte("quiet", &mut console).await;
                // The first warms caches.
                if start > 0 {
                    times[which].push(ms(took));
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
    }
    desk.post("/v1/sandboxes/loud/stop?wait=20s", "{}").await;
    desk.stop().await;
    let [alone, beside] = &times;
    let ratio = median(beside) / median(alone);
    vec![Bar {
        what: "REST start to first output byte, beside one that prints as fast as it can",
        ours: format!("{:.1} ms (p99 {:.1})", median(beside), p99(beside)),
        reference: format!("without it: {:.1} ms (p99 {:.1})", median(alone), p99(alone)),
        bar: "<= 1.1 x",
        met: ratio <= 1.1,
        figures: json!({"median_ms": median(beside), "reference_median_ms": median(alone), "ratio": ratio}),
    }]
}
