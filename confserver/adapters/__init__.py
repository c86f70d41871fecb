"""Where the configuration server touches vCenter, Azure, the database, agents and master targets."""
