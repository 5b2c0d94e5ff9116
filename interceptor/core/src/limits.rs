//! Every bound in one place, each with its arithmetic and what breaks when it changes.

/// Largest message of any protocol that is decoded, in bytes, unless configured: PostgreSQL itself
/// takes 1 GiB, agents send a few KiB; a whole message is held in memory while it is decided, so
/// this times the number of held sessions bounds the daemon's memory.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Largest start-up packet: PostgreSQL's own MAX_STARTUP_PACKET_LENGTH.
pub const STARTUP_BYTES_MAX: usize = 10_000;

/// Longest statement that is parsed, in bytes. libpg_query builds a tree of some 100 times the
/// text's size, so this bounds one parse to about 100 MiB and 50 ms; what is longer is `unclassified`.
pub const STATEMENT_BYTES_MAX: usize = 1 << 20;

/// Deepest nesting of brackets in a statement that is parsed. Tree walks recurse once or twice a
/// level with frames under 1 KiB, so 500 levels stay far below a thread's 2 MiB stack.
pub const STATEMENT_DEPTH_MAX: usize = 500;

/// Bytes that may wait to be written to one peer before the other is no longer read.
pub const QUEUED_BYTES_MAX: usize = 1 << 20;

/// Bytes read from a socket at once.
pub const READ_BYTES: usize = 64 << 10;

/// Prepared statements and portals that one session may hold open; PostgreSQL has no bound, pools
/// keep a few hundred. Each costs its text and description.
pub const NAMES_MAX: usize = 10_000;

/// Responses that may be outstanding in one session before the client is no longer read.
pub const PIPELINE_MAX: usize = 4_096;

/// Bytes of response kept in memory before a part of it is handed to the journal.
pub const RESPONSE_PART_BYTES: usize = 64 << 10;

/// Operations that may wait for approval at once. Each holds its session's buffers (at most
/// [`MESSAGE_BYTES_MAX`], in practice a few KiB) and a line of a list that people have to read.
pub const APPROVALS_PENDING_MAX: usize = 10_000;

/// Operations of one agent that may wait for approval at once, so that no agent can take all
/// places and keep the others from being asked about.
pub const APPROVALS_PENDING_AGENT_MAX: usize = 1_000;

/// Ended approvals that `approvals list --all` remembers, without their content, some KiB each;
/// all others are in the journal.
pub const APPROVALS_ENDED_MAX: usize = 256;

/// Largest ClientHello, in bytes: those with post-quantum key shares and tickets have some 2 KiB. The
/// whole of it is held before anything is known about the connection.
pub const CLIENT_HELLO_BYTES_MAX: usize = 32 << 10;

/// Largest head of an HTTP message, in bytes: servers take 8 to 64 KiB.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 << 10;

/// Most header fields of an HTTP message; servers take some 100.
pub const HTTP_FIELDS_MAX: usize = 128;

/// Interim responses (1xx) to one request. Servers send one, or one every some seconds while they work.
pub const HTTP_INTERIM_MAX: usize = 1_000;

/// Largest request body that is waited for before the request is decided, in bytes. What is larger, or
/// doesn't say how large it is, is decided by its head, unless a rule needs the body or people are asked.
pub const HTTP_BODY_AWAITED_MAX: u64 = 64 << 10;

/// Bytes of one body that go on record, unless configured; of the rest the digest does.
pub const HTTP_RECORDED_BYTES_MAX: u64 = 1 << 20;

/// Questions to DNS servers that may be unanswered in one session. Of what UDP lost nobody is told, so the
/// oldest is given up for one more: a resolver of some thousand lookups a second, whose server takes a second
/// for each, is what this serves. Each costs its question and a little, under 512 bytes.
pub const DNS_OUTSTANDING_MAX: usize = 4_096;

/// Names that one answer may say that a name stands for. Resolvers follow 8 to 16 aliases.
pub const DNS_ALIASES_MAX: usize = 16;

/// Addresses that are taken from one answer. Names have some dozen at most; a message of 64 KiB could hold 16,000,
/// each of which is compared with those before it.
pub const DNS_ADDRESSES_MAX: usize = 256;

/// Messages of one session that answer nothing and stand each for itself on record, some hundred bytes each;
/// of those after them the number does. Who guesses at answers from elsewhere sends thousands.
pub const DNS_DROPPED_RECORDED_MAX: u64 = 64;

/// Different names, over all domains, that a rule on `distinct` remembers of one agent within its time, at
/// some 40 bytes each with its domain's. An agent that asks for more counts as over the rule's number.
pub const DNS_DISTINCT_NAMES_MAX: usize = 65_536;

/// Largest message of a login that is taken from either side while we end it: PostgreSQL's own
/// PG_MAX_AUTH_TOKEN_LENGTH. SCRAM's have some hundred bytes.
pub const LOGIN_MESSAGE_BYTES_MAX: usize = 65_535;

/// Longest secret, in bytes: a password has a few, a token of a cloud some thousand.
pub const SECRET_BYTES_MAX: usize = 16 << 10;

/// Rounds of hashing that a server may ask a login for. PostgreSQL's default is 4 096; this many take
/// a thread of the data plane about 0.3 s, in which it serves nobody else.
pub const SCRAM_ITERATIONS_MAX: u32 = 1_000_000;

/// Rounds below which a proof can be guessed from too quickly to be sent where somebody may listen
/// (RFC 7677, section 4); also what we ask agents for.
pub const SCRAM_ITERATIONS: u32 = 4_096;

/// Longest text that is put into words, in bytes. Its tree is some 300 times as large with the describer's form of it, and
/// takes up to 200 ms, as one condition of thousands of parts; a page spends this eight times at most. Of longer ones
/// effects and names are told.
pub const WORDS_STATEMENT_BYTES_MAX: usize = 32 << 10;

/// Sentences about one operation; of the statements behind them effects and names are told together. More than these
/// nobody reads one by one.
pub const WORDS_SENTENCES_MAX: usize = 20;

/// Longest sentence, in characters; what is cut is counted, and warned of.
pub const WORDS_SENTENCE_CHARACTERS_MAX: usize = 700;

/// Longest quote within a sentence, a condition or a string, in characters: two lines of a card.
pub const WORDS_QUOTE_CHARACTERS_MAX: usize = 200;

/// Names of one kind in a sentence.
pub const WORDS_NAMES_MAX: usize = 4;

/// Conditions of one operation that are quoted, each being parsed for a second time.
pub const WORDS_QUOTES_MAX: usize = 100;
