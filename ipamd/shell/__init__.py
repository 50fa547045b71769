"""Around the pool: what it decided is recorded and carried out here, and what came of that is its next event. No
decision about addresses is taken here."""
