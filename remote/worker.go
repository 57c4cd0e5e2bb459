package remote

// Magic numbers and versions of the worker protocol; NIX.md has the bytes.
const (
	workerMagicClient = 0x6e697863
	workerMagicServer = 0x6478696f

	workerVersion    = 1<<8 | 38 // what we announce
	workerMinVersion = 1<<8 | 21 // the oldest peer we talk to

	workerStructured  = 1<<8 | 26 // errors with level, name and traces
	workerFramed      = 1<<8 | 23 // AddToStoreNar takes the NAR in frames
	workerSubstitute  = 1<<8 | 27 // QueryValidPaths has a substitute flag
	workerAddMultiple = 1<<8 | 32 // AddMultipleToStore
	workerNixVersion  = 1<<8 | 33 // the server names its Nix version
	workerTrust       = 1<<8 | 35 // the server says whether it trusts the client
	workerFeatures    = 1<<8 | 38 // both ends name features
)

// buildModeRepair makes BuildPaths replace damaged outputs.
const buildModeRepair = 1

// Operations of the worker protocol.
const (
	opIsValidPath                = 1
	opQueryReferrers             = 6
	opAddToStore                 = 7
	opBuildPaths                 = 9
	opEnsurePath                 = 10
	opAddTempRoot                = 11
	opAddIndirectRoot            = 12
	opFindRoots                  = 14
	opSetOptions                 = 19
	opCollectGarbage             = 20
	opQuerySubstitutablePathInfo = 21
	opQueryAllValidPaths         = 23
	opQueryPathInfo              = 26
	opQueryPathFromHashPart      = 29
	opQuerySubstitutableInfos    = 30
	opQueryValidPaths            = 31
	opQuerySubstitutablePaths    = 32
	opQueryValidDerivers         = 33
	opOptimiseStore              = 34
	opVerifyStore                = 35
	opBuildDerivation            = 36
	opAddSignatures              = 37
	opNARFromPath                = 38
	opAddToStoreNAR              = 39
	opQueryMissing               = 40
	opQueryDerivationOutputMap   = 41
	opRegisterDrvOutput          = 42
	opQueryRealisation           = 43
	opAddMultipleToStore         = 44
	opAddBuildLog                = 45
	opBuildPathsWithResults      = 46
	opAddPermRoot                = 47
	opAddTempRoots               = 49 // with featureTempRoots
	opQueryPathInfos             = 50 // with featurePathInfos
)

// Features of the worker protocol, which hold where both ends name them.
const (
	featureTempRoots = "addTempRoots"
	featurePathInfos = "queryPathInfos"
)

// ourFeatures are those that either end of ours names.
var ourFeatures = []string{featureTempRoots, featurePathInfos}

// Tags of the messages that a daemon sends before the answer to an operation.
const (
	stderrNext          = 0x6f6c6d67
	stderrRead          = 0x64617461
	stderrWrite         = 0x64617416
	stderrLast          = 0x616c7473
	stderrError         = 0x63787470
	stderrStartActivity = 0x53545254
	stderrStopActivity  = 0x53544f50
	stderrResult        = 0x52534c54
)
