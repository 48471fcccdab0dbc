package conn

const typeHandshake = 22
