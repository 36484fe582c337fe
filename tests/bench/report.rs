//! What was found, as a table for people and as a line of JSON for programs.

use serde_json::{Value, json};

/// One line of the table.
pub struct Bar {
    pub what: &'static str,
    pub ours: String,
    pub reference: String,
    pub bar: &'static str,
    pub met: bool,
    pub figures: Value,
}

pub fn print(bars: &[Bar]) {
    println!("\n{:<52} {:>22} {:>22} {:>18}  met", "what", "sodiumd", "reference", "bar");
    for bar in bars {
        let met = if bar.met { "yes" } else { "NO" };
        println!("{:<52} {:>22} {:>22} {:>18}  {met}", bar.what, bar.ours, bar.reference, bar.bar);
    }
    let all: Vec<Value> = bars
        .iter()
        .map(
            |bar| json!({"what": bar.what, "bar": bar.bar, "met": bar.met, "figures": bar.figures}),
        )
        .collect();
    println!("\n{}", serde_json::to_string(&all).unwrap());
}
