//! Why a kernel refuses a call.

/// A reason, without the operator's name (the dispatcher adds it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(String);

impl Fault {
    /// A reason in words.
    #[cold]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The same reason, about parameter `name`.
    #[cold]
    pub fn about(self, name: &str) -> Self {
        Self(format!("{name}: {}", self.0))
    }

    /// The words.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// What a kernel answers.
pub type Outcome<T = ()> = Result<T, Fault>;

/// Returns a [`Fault`] made from the format arguments unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::emulated::kernels::fault::Fault::new(format!($($text)+)));
        }
    };
}
pub(crate) use ensure;
