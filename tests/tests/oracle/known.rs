//! Where tayga 0.9.2 (Debian 12) and `clat_xlat` differ, and why.

/// A difference that is known.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The case, or with `*` at its end all that begin so.
    pub case: &'static str,
    /// The fields, or with `*` at an end all that begin so.
    pub fields: &'static [&'static str],
    /// Who is right, and by which text.
    #[allow(dead_code)] // shown by Debug, and read by people
    pub why: &'static str,
}

/// The index of the entry that knows this difference.
pub fn find(case: &str, field: &str) -> Option<usize> {
    let fits = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => text == pattern,
    };
    KNOWN.iter().position(|k| fits(k.case, case) && k.fields.iter().any(|f| fits(f, field)))
}

/// The table.
pub const KNOWN: &[Known] = &[];
