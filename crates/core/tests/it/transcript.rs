//! Readable transcripts: a text of commands, each with its output after `->`. Blank lines and lines that begin with `#`
//! are for the reader.

/// Runs the commands of a transcript, and compares their output with the text.
pub(crate) fn replay(name: &str, text: &str, mut perform: impl FnMut(&[&str]) -> Vec<String>) {
    let mut found = String::new();
    for line in text.lines() {
        let command = line.split("->").next().unwrap_or_default().trim_end();
        found += command;
        if !command.is_empty() && !command.starts_with('#') {
            let words: Vec<&str> = command.split_whitespace().collect();
            let gave = perform(&words);
            if !gave.is_empty() {
                found = format!("{found} -> {}", gave.join(", "));
            }
        }
        found.push('\n');
    }
    assert!(found == text, "{name} gave this instead:\n{found}");
}
